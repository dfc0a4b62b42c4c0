"""For Nuke's Script Editor: an MLClient node behind the selected one, connected to the server. No gizmo is needed.

The node comes from Foundry's open ML client, built for the version of Nuke that is running.
"""

import nuke

HOST, PORT = "127.0.0.1", 55555  # numbers only: the node resolves no names

source = nuke.selectedNode()
client = nuke.createNode("MLClient", inpanel=True)
client.setInput(0, source)
client["host"].setValue(HOST)
client["port"].setValue(PORT)
client["connect"].execute()  # fetches the list of models; their knobs appear in the panel

# the matte in all three planes becomes the alpha of the source
alpha = nuke.nodes.Copy(inputs=[source, client], from0="rgba.red", to0="rgba.alpha")
nuke.nodes.Premult(inputs=[alpha])
