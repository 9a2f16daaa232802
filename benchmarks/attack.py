"""What a thousand hostile clients at once cost the server: memory, and how long another client waits meanwhile.

Holds the attacks; the server, the series and the client are those of `dicomweb`. Every attack waits until the server has answered or let go of all.

    python benchmarks/attack.py [--clients 1000] [--side 1024]        about three minutes
"""

import argparse
import asyncio
import resource
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from dicomweb import ROOT, Server, ingest, one, write_series

KIND = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
STORE = 'POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/related; type="application/dicom"; boundary=a\r\n'

Attack = Callable[[int, int], Awaitable[str]]


def main() -> None:
    """Run all attacks on one server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--side", type=int, default=1024, help="of the frames that are asked for, of 16 bits")
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="pixels-bench-") as name:
        folder = Path(name)
        study, series = write_series(folder / "source", 20, options.side)
        ingest(folder)
        frame = f"/dicom-web/studies/{study}/series/{series}/instances/{ROOT}.4.%d/frames/1"

        async def frames_that_wait(number: int, port: int) -> str:
            return await taken(port, frame % (number % 20 + 1), seconds=15)

        async def frames(number: int, port: int) -> str:
            return await taken(port, frame % (number % 20 + 1), seconds=0)

        attacks = {
            "heads that never end, of 60 KiB": endless_heads,
            "bodies that stop after 900 KiB": stopped_bodies,
            "frames": frames,
            "frames that nobody takes for 15 s": frames_that_wait,
        }
        with Server(folder / "lake", "--exports", str(folder / "exports")) as server:
            asyncio.run(one(server.port, frame % 1))
            for title, attack in attacks.items():
                before, used, started = server.memory(), server.processor(), time.perf_counter()
                server.forget_most()
                answers, waited = asyncio.run(under(attack, options.clients, server.port))
                told = f"{before:.0f} MiB before, {server.memory('VmHWM'):.0f} at most, {server.memory():.0f} after"
                print(f"{options.clients:,} x {title}: {time.perf_counter() - started:.0f} s, {server.processor() - used:.0f} s CPU; {told}")
                print(f"    answers: {dict(answers)}; another client waited {1000 * waited:.0f} ms at most", flush=True)
            left = [file for file in folder.glob("exports*/**/*") if file.is_file()]
            print(f"files left behind: {len(left)}")


async def under(attack: Attack, clients: int, port: int) -> tuple[Counter[str], float]:
    """Attack, while another client asks for something small every half second: what the attackers got, and its longest wait."""
    attackers = asyncio.gather(*(attack(number, port) for number in range(clients)))
    longest = 0.0
    while not attackers.done():
        started = time.perf_counter()
        status, _ = await one(port, "/dicom-web/studies?limit=1")
        longest = max(longest, time.perf_counter() - started)
        assert status == 200, status
        await asyncio.sleep(0.5)
    return Counter(await attackers), longest


async def endless_heads(number: int, port: int) -> str:
    """Send a head that grows by a byte a second, once it is nearly as long as it may be."""
    return await drip(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 60 * 1024)


async def stopped_bodies(number: int, port: int) -> str:
    """Send the beginning of an object, and no more."""
    head = f"{STORE}Content-Length: {1 << 30}\r\n\r\n--a\r\nContent-Type: application/dicom\r\n\r\n"
    return await drip(port, head.encode() + bytes(900 * 1024), seconds=None)


async def drip(port: int, begun: bytes, seconds: float | None = 1.0) -> str:
    """Send what is begun, then a byte at a time where `seconds` says how often, until the server answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.ensure_future(reader.read(64))
    try:
        writer.write(begun)
        while not (await asyncio.wait([answer], timeout=seconds))[0]:
            writer.write(b"a")
        return (answer.result()[9:12] or b"closed").decode()
    except ConnectionError:
        return "closed"
    finally:
        writer.close()


async def taken(port: int, path: str, seconds: float) -> str:
    """Ask for a frame, and take its bytes only after some seconds."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.setblocking(False)
    await asyncio.get_running_loop().sock_connect(line, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=line)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: {KIND}\r\n\r\n".encode())
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(seconds)
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length, size = int(head.partition("content-length: ")[2].partition("\r")[0] or -1), 0
    while chunk := await reader.read(1 << 16):
        size += len(chunk)
    writer.close()
    return head[9:12] if size == length else f"{head[9:12]} cut"


if __name__ == "__main__":
    main()
