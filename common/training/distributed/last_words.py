"""How a rank ended, told by its supervisor to the first rank on the same machine, which says it in its own line.

The supervisor sees why a rank was killed; the first rank sees that it is gone, and knows what to do. Words come as
datagrams to a name in the kernel, which is there as long as this process, and only from processes of the same user.
"""

import os
import socket
import struct
from contextlib import suppress

WAIT_SECONDS = 1.0
"""For how long the first rank waits for words when another one is gone: a supervisor sends them within a look."""
LONGEST = 200
"""Most characters of a word."""
_CREDENTIALS = struct.Struct("3i")
_listening: list[socket.socket] = []


def listen() -> None:
    """Take words from now on, as the first rank."""
    with suppress(OSError):
        own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        own.settimeout(WAIT_SECONDS)
        own.bind(f"\0peakline.{os.getuid()}.{os.environ.get('MASTER_PORT', '')}")
        _listening[:] = [own]


def heard() -> str:
    """Return how another rank on this machine ended, if that is known and nobody has said it; else nothing."""
    for own in _listening:
        with suppress(OSError):
            room = socket.CMSG_SPACE(_CREDENTIALS.size)
            word, credentials, _, sender = own.recvmsg(LONGEST, room)
            users = [_CREDENTIALS.unpack(data)[1] for *_, data in credentials if len(data) == _CREDENTIALS.size]
            if users == [os.getuid()]:
                own.sendto(b"1", sender)  # fails if the supervisor has said it
                return "".join(filter(str.isprintable, word.decode(errors="replace")))
    return ""
