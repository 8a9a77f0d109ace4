"""A frozen graph or a float .tflite → a smaller .tflite: schemes and calibration."""
