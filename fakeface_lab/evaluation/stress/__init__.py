"""How much a model relies on single properties of its images, and the search for models that do not.

`suite` has the conditions and the report about one model, `changes` applies a condition to a picture, `objective`
corrects the best score of a search for robustness, and `comparison` compares two models under stress.
"""
