"""The folder of images to train on: images, captions and sizes."""
