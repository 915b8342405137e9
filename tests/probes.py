"""How long GET /sdapi/v1/progress takes, asked again and again from a process that does nothing else: a program, since
threads that share an interpreter wait for each other, and that would count as the server's time.
"""

import http.client
import json
import sys
import time

PAUSE = 0.02  # seconds


def seconds_to_answer(port: int) -> float:
    """With a connection of its own. Raises AssertionError for any answer but 200."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/sdapi/v1/progress")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status == 200
    return time.monotonic() - began


def main():
    """PORT SECONDS: prints "begun", and in the end the seconds of each answer as JSON."""
    port, until = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
    times = [seconds_to_answer(port)]
    print("begun", flush=True)
    while time.monotonic() < until:
        times.append(seconds_to_answer(port))
        time.sleep(PAUSE)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
