"""From the bytes of an image to one that is validated, plain and clean."""
