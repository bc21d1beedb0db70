"""A client of any server with OpenAI's API, for engines whose model runs elsewhere. Imports no torch.

`settings` says where it is, `client` speaks its protocol (`wire`, `sse`), `transport` its HTTP, `breaker` leaves it
alone when it fails.
"""
