"""Episodes of images, and their augmentation."""
