"""Pseudo terminals whose output is collected."""

import os
import pty
import threading


class PseudoTerminal:
    """
    A pseudo terminal, as a context manager. `text` is what was written to it, complete once the context has ended.

    This process holds the terminal open until the last byte is read: some kernels drop the unread output of a terminal
    that every process has closed.
    """

    END = b"\0end"

    def __enter__(self) -> "PseudoTerminal":
        self.keyboard, self.file = pty.openpty()
        self.written = bytearray()
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()
        return self

    def read(self) -> None:
        while not self.written.endswith(self.END):
            self.written.extend(os.read(self.keyboard, 65536))

    def __exit__(self, *error) -> None:
        os.write(self.file, self.END)
        self.thread.join(timeout=60)
        os.close(self.keyboard)
        os.close(self.file)

    @property
    def text(self) -> str:
        return self.written.removesuffix(self.END).decode()
