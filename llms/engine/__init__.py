"""From chats to answers: caching, retries and schema validation of requests."""
