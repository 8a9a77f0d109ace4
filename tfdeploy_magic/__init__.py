"""From the TensorFlow model in your notebook to a deployment you can trust."""

__version__ = "0.1.0.dev0"
