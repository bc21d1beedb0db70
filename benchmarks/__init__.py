"""Measurements: each prints JSON with the commit, machine, versions and seed. They never assert."""
