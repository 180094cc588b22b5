"""Readers and writers of images and segmentations, and the terminology of what is segmented."""
