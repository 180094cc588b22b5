"""Prompts: how the user's are shown to the network, and who prompts when the user does not."""
