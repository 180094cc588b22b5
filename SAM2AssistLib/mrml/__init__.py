"""The bridge between MRML nodes and the library; it knows Slicer's scene, but neither Qt nor torch."""
