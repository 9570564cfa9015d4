"""The whole way in one go: a person's LLaVA and photos to the same LLaVA with few tokens, and a page that says what it is worth.

In: a recipe and a folder. Out: in that folder a tower, the swapped LLaVA, measurements on photos held back, and `report.html`. What was
done stays done: whatever ends a run, the next one goes on. `run` is the order of things. It knows all rooms but `commands`.
"""
