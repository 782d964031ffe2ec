"""What the GPU's machine does with one parcel: judges its images, and puts the pairs away."""
