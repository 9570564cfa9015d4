"""What a person can ask for: one module a command says what it does, and one of `options` its flags."""
