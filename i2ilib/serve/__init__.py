"""Networks for a compositing package: a server and a client of the protocol of Nuke's MLClient node.

``wire``, ``client`` and ``conformance`` need neither PyTorch nor an engine; ``server`` and ``networks`` load what they
run. Nothing here sends a client anything to execute, and nothing that comes from the wire names a file.
"""
