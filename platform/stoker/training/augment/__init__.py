"""Augment images and labels on the device: pixel operations, erasing, mixing."""
