"""Showing people where tokens looked, and two towers side by side.

In: a model, photos, a host. Out: pictures with boxes, answers beside each other, and how well a rectangle can be asked
about. It knows `util` to `evaluate`.
"""
