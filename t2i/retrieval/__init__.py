"""Search in collections of images, by words or by an image."""
