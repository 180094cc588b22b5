"""Training: procedural phantoms, data sets, losses and the trainers."""
