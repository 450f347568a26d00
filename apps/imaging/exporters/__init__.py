"""Write a model in the form that other programs read."""
