"""Attacks on a trained model that measure how much it reveals about its training images."""
