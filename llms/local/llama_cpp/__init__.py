"""Engine on llama.cpp."""
