"""Two random views of a batch of images.

`view` says how a view is drawn, `spatial` and `color` have the operations, and `pipeline` applies
them to a batch in order.
"""
