"""What a student is held to: what its teacher and a host say of the photos, without a label.

In: a teacher, photos, and a host where the objective asks for one. Out: the `Target` of a batch (`teacher`), from a `cache` on
disk where views repeat. A host is asked first (`interview`); its answers are then read again as `conversations`.
"""
