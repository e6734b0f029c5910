"""A headless Chromium, asked over its DevTools protocol by a pair of pipes: no driver, no port, no package."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
)
MEASURES = """(() => {
  const wide = document.documentElement;
  return {
    scroll: Math.max(wide.scrollWidth, document.body.scrollWidth) - wide.clientWidth,
    width: wide.clientWidth,
    plots: [...document.querySelectorAll("figure svg")].map(svg => {
      const box = svg.getBoundingClientRect();
      const shown = svg.checkVisibility({opacityProperty: true, visibilityProperty: true});
      const ink = svg.querySelectorAll("path").length;
      return {width: box.width, height: box.height, left: box.left, right: box.right, shown, ink};
    }),
    background: getComputedStyle(document.body).backgroundColor,
  };
})()"""


class Browser:
    """One window with one page. `said`: what its console and its log say; `asked`: the addresses that it requested."""

    def __init__(self):
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        switches = " ".join((*SWITCHES, f"--user-data-dir={self._profile.name}"))
        self._process = subprocess.Popen(  # the protocol stands on the descriptors 3 and 4
            ["bash", "-c", f'exec "{CHROMIUM}" {switches} about:blank 3<&{theirs_in} 4>&{theirs_out}'],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._rest, self.said, self.asked, self._loaded = 0, b"", [], [], False
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def open(self, path: Path, width: int, height: int = 900, scheme: str = "light") -> dict:
        """Opens a file at that width. Returns: what MEASURES says of it."""
        return self.visit(path.resolve().as_uri(), width, height, scheme)

    def visit(self, address: str, width: int, height: int = 900, scheme: str = "light") -> dict:
        """Does the same for an address."""
        self._loaded = False
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._ask("Page.navigate", url=address)
        while not self._loaded:
            self._read()
        return self.run(MEASURES)

    def run(self, script: str):
        return self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get("value")

    def until(self, script: str):
        """Return what the script says as soon as it is true; the page itself asks again."""
        ask = f"const ask = () => {{ const said = {script}; said ? done(said) : setTimeout(ask, 10); }}; ask();"
        return self.run(f"new Promise(done => {{ {ask} }})")

    def press(self, key: str) -> None:
        """Press and release a key, such as Enter."""
        text = {"text": "\r", "windowsVirtualKeyCode": 13} if key == "Enter" else {}
        for kind, more in (("keyDown", text), ("keyUp", {})):
            self._ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, **more)

    def hover(self, x: float, y: float) -> None:
        """Move the pointer to a place of the window, in CSS pixels."""
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def download_to(self, folder: Path) -> None:
        """Save what the page offers for download in a folder."""
        self._ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def picture(self, path: Path) -> None:
        """Of the whole page, as PNG."""
        data = self._ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def _ask(self, method: str, **values):
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _read(self, seconds: float = 60.0) -> dict:
        """The next message; notes it if it is an event."""
        end = time.monotonic() + seconds
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise EOFError("Chromium ended")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(message)
        event, values = message.get("method"), message.get("params") or {}
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            self.asked.append(values["request"]["url"])
        elif event == "Log.entryAdded":
            self.said.append(values["entry"]["text"])
        elif event == "Runtime.exceptionThrown":
            self.said.append(str(values["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled":
            self.said.append(str(values["args"]))
        return message
