"""The shared event loop, the clients that live on it, and their wire formats."""
