"""The console script ``sam2assist``: arguments are turned into the same library calls that the Slicer module makes."""
