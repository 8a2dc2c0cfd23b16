"""Tells what a trained model gives away about its training images."""
