"""What a person can ask for: one module a command, its flags as a dataclass, and what it does as one function."""
