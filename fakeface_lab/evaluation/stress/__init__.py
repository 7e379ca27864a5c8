"""How much a network rests on one property of its images, changed one at a time: arrays in, numbers out."""
