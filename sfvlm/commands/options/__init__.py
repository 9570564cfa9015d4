"""The flags of each command, as dataclasses.

What is asked for by `--help` is told before torch is there: these modules import what is light, and the commands, which
take their options from here, the rest.
"""
