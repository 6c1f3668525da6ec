"""The event loop, the clients that live on it, and the wire formats they speak."""
