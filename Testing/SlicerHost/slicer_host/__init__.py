"""A host for Slicer modules: their own files, a real MRML scene, real VTK views, and stand-ins for the Qt application.

See README.md beside this package for what is Slicer's here and what is not.
"""

from .host import Host, open_host
from .pythonqt import PythonQtError
from .user import Heartbeat, Latency, User
from .views import can_render

__all__ = ["Heartbeat", "Host", "Latency", "PythonQtError", "User", "can_render", "open_host"]
