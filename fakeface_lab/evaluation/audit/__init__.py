"""What about the images gives their labels away, found before anyone believes a model.

`features` and `probes` are small models that see almost nothing, `audit` and `findings` look for what they and the
files tell, `card` is the result on a page.
"""
