"""The demo store: an invented shop's support chat, the tiny models trained on it, and how they are made."""
