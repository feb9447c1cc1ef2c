"""What a stored tensor is: its name, its layout, the matrix that is analysed, its bits."""
