"""Engine on Hugging Face Transformers."""
