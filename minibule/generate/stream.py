"""An answer on the screen as it comes."""

from minibule.program import leave_if_unread
from minibule.text.chat import Chat


class Printer:
    """Prints an answer as it comes, holding back bytes that are not yet a whole character."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.ids: list[int] = []
        self.printed = 0

    def __call__(self, _sequence: int, token: int) -> None:
        self.ids.append(token)
        text = self.chat.decode(self.ids)
        if not text.endswith("\ufffd"):
            self._print(text)

    def end(self) -> None:
        """No token comes any more: what was held back is printed as it is, and the line ends."""
        self._print(self.chat.decode(self.ids) + "\n")

    def _print(self, text: str) -> None:
        print(text[self.printed :], end="", flush=True)
        self.printed = len(text)
        leave_if_unread()
