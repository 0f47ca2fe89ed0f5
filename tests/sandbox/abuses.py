"""What a program may try: ways out, ways to use up the machine, ways to a verdict that it has not earned.

A way out prints ESCAPED where it succeeds, or leaves a mark outside that the suite looks for. `@name@` is filled in by
the suite (`suite.py`): a secret file, a folder that anybody may write, sockets that listen, the trainer's process and
a victim's.
"""

# ruff: noqa: E501  (programs are kept to few lines each)

from __future__ import annotations

from dataclasses import dataclass

#: Before every way out.
PRELUDE = """
import ctypes, os, sys, time
L = ctypes.CDLL(None, use_errno=True)
NUMBERS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51),
    "bpf": (321, 280), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "perf_event_open": (298, 241), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104),
    "reboot": (169, 142), "syslog": (103, 116), "swapon": (167, 224), "sethostname": (170, 161), "acct": (163, 89),
    "clock_settime": (227, 112), "settimeofday": (164, 170), "adjtimex": (159, 171), "shmget": (29, 194),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "inotify_init1": (294, 26), "fanotify_init": (300, 262),
    "personality": (135, 92), "setpriority": (141, 140), "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122), "rt_sigqueueinfo": (129, 138), "tkill": (200, 130), "seccomp": (317, 277),
    "landlock_create_ruleset": (444, 444), "capset": (126, 91), "setuid": (105, 146), "setresuid": (117, 147),
    "mknodat": (259, 33), "linkat": (265, 37), "symlinkat": (266, 36), "fchmodat": (268, 53), "fchownat": (260, 54),
    "execve": (59, 221), "execveat": (322, 281), "socket": (41, 198), "socketpair": (53, 199), "clone3": (435, 435),
    "kcmp": (312, 272), "quotactl": (179, 60), "mlockall": (151, 230), "open_tree": (428, 428), "fsopen": (430, 430),
    "move_mount": (429, 429), "mount_setattr": (442, 442), "io_setup": (206, 0), "timer_create": (222, 107),
    "setsid": (112, 157), "setpgid": (109, 154), "setgroups": (116, 159), "modify_ldt": (154, None),
    "iopl": (172, None), "ioperm": (173, None), "arch_prctl": (158, None), "vfork": (58, None), "fork": (57, None),
}
COLUMN = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
def out(*words):
    print("ESCAPED", *words, flush=True)
def refused(*names, with_arguments=(0, 0, 0, 0, 0, 0)):
    # EPERM or ENOSYS at the door. Any other error means that the kernel has looked at the arguments.
    for name in names:
        number = NUMBERS[name][COLUMN]
        if number is None:
            continue
        ctypes.set_errno(0)
        result = L.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in with_arguments])
        if result >= 0 or ctypes.get_errno() not in (1, 38):
            out(name, result, os.strerror(ctypes.get_errno()))
def fails(attempt, *arguments):
    try:
        result = attempt(*arguments)
    except (OSError, ImportError, RuntimeError, ValueError, MemoryError):
        return
    out(getattr(attempt, "__name__", attempt), arguments, repr(result)[:100])
def read(path):
    with open(path, "rb") as file:
        return file.read(4096)
"""

#: Name → program that prints ESCAPED where it gets out.
WAYS_OUT = {
    # files
    "read /etc/passwd": "fails(read, '/etc/passwd')",
    "read a secret that anybody may read": "fails(read, '@secret@')",
    "read it by a path upwards": "fails(read, '../' * 20 + '@secret@'.lstrip('/'))",
    "read it by way of a folder's number": (
        "fails(lambda: os.open('@secret@'.lstrip('/'), os.O_RDONLY, dir_fd=os.open('/', os.O_PATH)))"
    ),
    "read the environment of processes": (
        "for p in ('self', 1, @trainer@, @victim@): fails(read, f'/proc/{p}/environ')"
    ),
    "list folders": "for p in ('/', '/etc', '/home', '/root', '/proc', '/sys', '/dev', '/tmp', '@folder@'):\n"
    "    try: found = os.listdir(p)\n"
    "    except OSError: continue\n"
    "    if set(found) - {'tmp', 'usr', 'root', 'opt', 'home'} and p != os.getcwd(): out(p, found)",
    "write where anybody may": "fails(open, '@folder@/mark', 'w')",
    "write to /tmp, /var/tmp, /dev/shm": (
        "for p in ('/tmp', '/var/tmp', '/dev/shm', '.', '/'): fails(open, p + '/mark', 'w')"
    ),
    "change the standard library": "fails(open, os.__file__, 'a'); fails(open, os.path.dirname(os.__file__)+'/x.py','w')",
    "plant a cached module": "fails(os.makedirs, os.path.dirname(os.__file__) + '/__pycache__/x')",
    "rename and remove": "fails(os.rename, os.__file__, os.__file__ + 'x'); fails(os.unlink, os.__file__)",
    "modes and owners": "fails(os.chmod, os.__file__, 0o777); fails(os.chown, os.__file__, 0, 0)\n"
    "refused('fchmodat', 'fchownat')",
    "/proc/self/mem": "fails(open, '/proc/self/mem', 'r+b'); fails(read, '/proc/self/maps')",
    "memory devices": "for p in ('mem', 'kmem', 'kmsg', 'port', 'vda', 'sda'): fails(read, f'/dev/{p}')",
    "packages beside the library": "for p in @packages@: fails(read, p)",
    "this repository": "fails(read, '@suite@')",
    "a symbolic link": "fails(os.symlink, '@secret@', 'link'); fails(read, 'link')",
    "a hard link": "fails(os.link, '@secret@', 'link'); fails(os.link, os.__file__, 'other'); refused('linkat')",
    "a device of one's own": "fails(os.mknod, 'device', 0o600 | 0o020000, os.makedev(1, 1)); fails(os.mkfifo, 'pipe')",
    "chroot": "fails(os.chroot, '.'); refused('chroot')",
    "mounts": "refused('mount', 'umount2', 'pivot_root', 'open_tree', 'fsopen', 'move_mount', 'mount_setattr')",
    "namespaces": "refused('setns'); refused('unshare', with_arguments=(0x10000000, 0))",
    "handles of files": "refused('name_to_handle_at', 'open_by_handle_at')",
    "watching files": "refused('inotify_init1', 'fanotify_init')",
    "open files that were left": (
        "import fcntl\n"
        "for n in range(3, 300):\n"
        "    try: fcntl.fcntl(n, fcntl.F_GETFD)\n"
        "    except OSError: continue\n"
        "    out('file', n)"
    ),
    "sockets that were left": (
        "import gc, socket\nfor s in gc.get_objects():\n    if isinstance(s, socket.socket): fails(s.send, b'{}')"
    ),
    # network
    "TCP": "import socket; fails(socket.create_connection, ('127.0.0.1', @tcp@), 0.2)",
    "TCP over IPv6": "import socket; fails(socket.create_connection, ('::1', @tcp@), 0.2)",
    "UDP": "import socket; fails(lambda: socket.socket(2, 2).sendto(b'x', ('127.0.0.1', @tcp@)))",
    "a local socket": "import socket; fails(lambda: socket.socket(socket.AF_UNIX).connect('@unix@'))",
    "an abstract socket": "import socket; fails(lambda: socket.socket(socket.AF_UNIX).connect('\\0@abstract@'))",
    "a raw socket": "import socket; fails(socket.socket, 2, 3, 1)",
    "packets and the kernel's own": "import socket\nfor f in (16, 17, 38, 40): fails(socket.socket, f, 3)",
    "names": "import socket; fails(socket.getaddrinfo, 'localhost', 80); fails(socket.getaddrinfo, 'example.com', 80)",
    "a server": "import socket; fails(lambda: socket.create_server(('127.0.0.1', 0)))",
    "a pair of sockets": "import socket; fails(socket.socketpair); refused('socket', 'socketpair')",
    # processes
    "fork": "fails(os.fork); refused('fork', 'vfork', 'clone3')",
    "clone": (
        "for flags in (0, 17, 0x100, 0x11, 0x7E020000, 0x10000 | 0x20000000):\n"
        "    ctypes.set_errno(0)\n"
        "    pid = L.syscall(ctypes.c_long((56, 220)[COLUMN]), ctypes.c_long(flags), 0, 0, 0, 0)\n"
        "    if pid >= 0 or ctypes.get_errno() != 1: out('clone', flags)"
    ),
    "a fork bomb": "while True:\n    try: os.fork()\n    except OSError: break\n    out('forked')",
    "a shell": "import subprocess\ntry: subprocess.run(['/bin/sh', '-c', 'echo ESCAPED'])\nexcept OSError: pass\n"
    "if os.system('echo ESCAPED') == 0: out('system')",
    "another program in place of this one": "fails(os.execv, sys.executable, ['x']); fails(os.execv, '/bin/sh', ['sh'])\n"
    "refused('execve', 'execveat')",
    "a library to load first": "os.environ['LD_PRELOAD'] = 'x.so'; os.environ['LD_LIBRARY_PATH'] = '.'\n"
    "fails(os.execve, '/bin/true', ['true'], dict(os.environ)); fails(os.posix_spawn, '/bin/true', ['true'], os.environ)",
    "a file in memory, executed": "fails(os.memfd_create, 'x'); refused('memfd_create', 'memfd_secret')",
    "a process that outlives": (
        "def daemonise():\n    if os.fork() == 0:\n        os.setsid()\n        os.fork()\n        time.sleep(60)\n"
        "fails(daemonise); refused('setsid', 'setpgid')"
    ),
    "signals to the parent": "for s in (0, 9, 15, 19): fails(os.kill, os.getppid(), s); fails(os.kill, 1, s)",
    "signals to everybody": "for p in (-1, 0, -os.getpgrp() - 1): fails(os.kill, p, 9)",
    "signals to others": "for p in (@trainer@, @victim@): fails(os.kill, p, 9); fails(os.killpg, p, 9)",
    "signals by other ways": "refused('tkill', 'rt_sigqueueinfo', 'pidfd_open', with_arguments=(@victim@, 9, 0))\n"
    "refused('pidfd_getfd', 'kcmp')",
    "tracing": "for r in (0, 16, 0x4206): refused('ptrace', with_arguments=(r, os.getppid() or 1, 0, 0))",
    "the memory of others": (
        "refused('process_vm_readv', 'process_vm_writev', with_arguments=(os.getppid() or 1, 0, 0, 0, 0, 0))"
    ),
    "to be root": "fails(os.setuid, 0); fails(os.setresuid, 0, 0, 0); fails(os.setgroups, [0])\n"
    "refused('setuid', 'setresuid', 'setgroups')\nif 0 in (os.getuid(), os.geteuid()): out('root')",
    "capabilities": "refused('capset')",
    "precedence": "fails(os.nice, -5); fails(os.setpriority, 0, @trainer@, 19); fails(os.sched_setaffinity, 0, {0})\n"
    "refused('sched_setscheduler', 'setpriority')",
    "higher limits": (
        "import resource as r\n"
        "for w in (r.RLIMIT_AS, r.RLIMIT_CPU, r.RLIMIT_NOFILE, r.RLIMIT_FSIZE):\n"
        "    fails(r.setrlimit, w, (r.RLIM_INFINITY, r.RLIM_INFINITY))\n"
        "fails(r.prlimit, @trainer@, r.RLIMIT_CPU, (1, 1))"
    ),
    "to undo what was given up": (
        "for o in (1, 4, 22, 23, 24, 28, 36, 38, 47, 59):\n"
        "    if L.prctl(o, 0, 0, 0, 0) >= 0: out('prctl', o)\n"
        "refused('seccomp', 'landlock_create_ruleset', 'personality', 'arch_prctl', 'modify_ldt')"
    ),
    # the kernel
    "the clock": "fails(time.clock_settime, time.CLOCK_REALTIME, 0)\nrefused('clock_settime', 'settimeofday', 'adjtimex')",
    "the keyring": "refused('keyctl', 'add_key', 'request_key')",
    "io_uring": "refused('io_uring_setup', 'io_uring_enter', 'io_uring_register', 'io_setup')",
    "userfaultfd": "refused('userfaultfd')",
    "bpf and counters": "refused('bpf', 'perf_event_open')",
    "modules and kernels": "refused('init_module', 'finit_module', 'kexec_load', 'reboot', 'syslog', 'swapon')",
    "the machine's name and books": "refused('sethostname', 'acct', 'quotactl', 'iopl', 'ioperm')",
    "shared memory left behind": (
        "refused('shmget', 'msgget', 'semget', 'mq_open', 'mlockall', with_arguments=(0x4D41, 4096, 0o1666, 0))\n"
        "from multiprocessing import shared_memory\nfails(shared_memory.SharedMemory, 'mark', True, 4096)"
    ),
    "timers that signal others": "refused('timer_create')\n"
    "import fcntl\nfails(fcntl.fcntl, 0, fcntl.F_SETOWN, @victim@); fails(fcntl.fcntl, 0, 10, 9)",
    "the terminal": "import fcntl\nfor n in (0, 1, 2): fails(fcntl.ioctl, n, 0x5412, b'x'); fails(fcntl.ioctl, n, 0x541C, b'x')",
    "32-bit system calls": (
        "if COLUMN: sys.exit()\nimport mmap\n"
        "page = mmap.mmap(-1, 4096, prot=7)\n"
        "page.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')\n"
        "call = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))\n"
        "call(); out('int 0x80')"
    ),
    "x32 system calls": "if COLUMN: sys.exit()\nL.syscall(ctypes.c_long(0x40000000 | 39)); out('x32')",
    "environment": "if os.environ: out(dict(os.environ))\nc = ctypes.POINTER(ctypes.c_char_p).in_dll(L, 'environ')\n"
    "i = 0\nwhile c and c[i]:\n    if b'HASHSEED' not in c[i]: out(c[i])\n    i += 1",
    "arguments": "if sys.argv != ['program.py']: out(sys.argv)",
}
#: Those of them that have a folder of their own to work in.
WITH_SCRATCH = ("a symbolic link", "a hard link", "a device of one's own", "chroot", "a library to load first")


@dataclass(frozen=True)
class Greed:
    """A program that uses something up: how it may end, and (`says`) what it prints where it ends by itself."""

    program: str
    ends: tuple[str, ...]
    says: str = ""
    scratch: int = 0


#: Name → program that must end in time, in one of these ways.
GREED = {
    "an endless loop": Greed("while True: pass", ("timeout",)),
    "sleep": Greed("import time; time.sleep(1000)", ("timeout",)),
    "waiting for input": Greed("import os, time\nos.read(os.pipe()[0], 1)", ("timeout",)),
    "a loop in C": Greed("10 ** 10 ** 9", ("timeout", "finished", "killed")),
    "a regular expression": Greed("import re; re.match('(a+)+$', 'a' * 60 + 'b')", ("timeout",)),
    "a loop that ignores signals": Greed(
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass", ("timeout",),
    ),
    "a loop after closing everything": Greed("import os\nos.closerange(0, 256)\nwhile True: pass", ("timeout",)),
    "a loop at exit": Greed("import atexit\n@atexit.register\ndef loop():\n    while True: pass", ("timeout",)),
    "a loop in a finaliser": Greed(
        "class A:\n    def __del__(self):\n        while True: pass\ndel (lambda a: a)(A()).x", ("timeout",)
    ),
    "a thread that stays": Greed("import threading, time\nthreading.Thread(target=time.sleep, args=[999]).start()", ("timeout",)),
    "catching everything": Greed("while True:\n    try:\n        while True: pass\n    except BaseException: pass", ("timeout",)),
    "a memory bomb": Greed("x = []\nwhile True: x.append(bytearray(1 << 20))", ("finished", "killed")),
    "memory that is mapped": Greed(
        "import mmap\nm = []\nwhile True: m.append(mmap.mmap(-1, 1 << 24))", ("finished", "killed")
    ),
    "a thread bomb": Greed(
        "import threading, time\nn = 0\ntry:\n"
        "    while True:\n        threading.Thread(target=time.sleep, args=[9], daemon=True).start(); n += 1\n"
        "except RuntimeError: print('few' if n < 40 else 'ESCAPED')", ("finished",), "few",
    ),
    "all file numbers": Greed(
        "import os\nn = 0\ntry:\n    while True: os.dup(1); n += 1\nexcept OSError: print('few' if n < 100 else 'ESCAPED')",
        ("finished",), "few",
    ),
    "a flood of output": Greed("while True: print('x' * 4096)", ("output",)),
    "a flood of errors": Greed("import os\nwhile True: os.write(2, b'x' * 65536)", ("output",)),
    "a flood without line ends": Greed("import sys\nwhile True: sys.stdout.write('x')", ("output", "timeout")),
    "a full disk": Greed(
        "n = 0\ntry:\n    for i in range(100):\n        with open(f'f{i}', 'wb') as f: n += f.write(bytes(1 << 18))\n"
        "except OSError: print('full' if n <= 1 << 20 else 'ESCAPED')", ("finished",), "full", 1 << 20,
    ),
    "one large file": Greed(
        "import os\ntry:\n    with open('f', 'wb') as f: f.seek(1 << 30); f.write(b'x')\n    print('ESCAPED')\n"
        "except OSError: print('no')", ("finished",), "no", 1 << 20,
    ),
    "many files": Greed(
        "n = 0\ntry:\n    while True: open(f'f{n}', 'w').close(); n += 1\n"
        "except OSError: print('few' if n < 5000 else 'ESCAPED')", ("finished",), "few", 1 << 20,
    ),
    "recursion without a limit": Greed(
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return [f()]\nf()", ("finished", "killed", "timeout")
    ),
    "a crash": Greed("import ctypes; ctypes.string_at(0)", ("killed",)),
    "an exit code": Greed("import os; os._exit(0)", ("finished",)),
    "a stop": Greed("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass", ("timeout",)),
    "waiting for no signal": Greed("import signal; signal.pause()", ("timeout",)),
}  # fmt: skip

#: The function that the tests ask for would return this of its argument; no program here knows how.
LYING = """
class Liar:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    def __bool__(self): return True
    def __hash__(self): return hash("@token@")
    def __repr__(self): return repr("@guess@")
    __str__ = __repr__
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
    def __iter__(self): return iter([self])
    def __len__(self): return 1
    def __getitem__(self, i): return self
    def __abs__(self): return 0
    def __sub__(self, other): return 0
    __rsub__ = __sub__
    def __float__(self): return 0.0
    def __int__(self): return 0
"""
#: Name → program whose `f` must not pass.
FORGERIES = {
    "an object that equals everything": LYING + "def f(x): return Liar()",
    "a class that equals everything": (
        "class Meta(type):\n    def __eq__(s, o): return True\n    __hash__ = type.__hash__\n"
        "class Liar(metaclass=Meta): pass\ndef f(x): return Liar"
    ),
    "a text that equals everything": (
        "class Liar(str):\n    def __eq__(s, o): return True\n    __hash__ = str.__hash__\ndef f(x): return Liar('no')"
    ),
    "a number that equals everything": (
        "class Liar(int):\n    def __eq__(s, o): return True\n    def __sub__(s, o): return 0\n    __rsub__ = __sub__\n"
        "    __hash__ = int.__hash__\ndef f(x): return Liar(0)"
    ),
    "a list that equals everything": (
        "class Liar(list):\n    def __eq__(s, o): return True\n    def __len__(s): return 1\ndef f(x): return Liar()"
    ),
    "a lying class": LYING + "class Worse(Liar):\n    __class__ = property(lambda s: str)\ndef f(x): return Worse()",
    "exit on definition": "import sys; sys.exit(0)",
    "exit on call": "import sys\ndef f(x): sys.exit(0)",
    "exit at once on definition": "import os; os._exit(0)",
    "exit at once on call": "import os\ndef f(x): os._exit(0)",
    "a signal to oneself": "import os\ndef f(x): os.kill(os.getpid(), 9)",
    "success on standard output": "print('PASSED 100% OK'); print('{\"passed\": true}')\ndef f(x): print('ok')",
    "success in the replies": (
        "import json, os, struct\ndef say(m):\n    b = json.dumps(m).encode()\n    os.write(4, struct.pack('<I', len(b)) + b)\n"
        "for m in ({'passed': True}, {'value': None}, {'value': True}, {'value': True}, {'passed': True}): say(m)\n"
        "def f(x):\n    say({'passed': True}); say({'value': True, 'passed': True}); os._exit(0)"
    ),
    "a question of its own": (
        "import json, os, struct\ndef say(m):\n    b = json.dumps(m).encode()\n    os.write(4, struct.pack('<I', len(b)) + b)\n"
        "say({'ask': {'call': 'f'}})\ndef f(x): say({'ask': {'call': 'f', 'args': []}})"
    ),
    "success at exit": "import atexit\natexit.register(lambda: print('PASSED'))\ndef f(x): raise SystemExit(0)",
    "patched built-ins": (
        "import builtins\nbuiltins.all = builtins.any = builtins.isinstance = lambda *a: True\n"
        "builtins.abs = lambda x: 0\nbuiltins.AssertionError = Exception\ndef f(x): return None"
    ),
    "a patched harness": (
        "import sys\nfor n, m in list(sys.modules.items()):\n    if n.startswith('maieutic.sandbox'):\n"
        "        for a in ('same', 'truth', 'decode'): setattr(m, a, lambda *a, **k: True)\n"
        "        if hasattr(m, 'Encoder'): m.Encoder.encode = lambda *a: True\n"
        "        if hasattr(m, 'send'): send = m.send; m.send = lambda x: send({**x, 'passed': True})\n"
        "def f(x): return None"
    ),
    "patched json": "import json\njson.dumps = lambda *a, **k: '{\"passed\": true}'\ndef f(x): return None",
    "a patched unittest": "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\ndef f(x): return None",
    "the caller's frames": (
        "import sys\ndef f(x):\n    g = sys._getframe()\n    while g:\n        for v in list(g.f_locals.values()) + list(g.f_code.co_consts):\n"
        "            if isinstance(v, (str, dict, list)) and 'token-' in str(v):\n"
        "                s = str(v); i = s.index('token-'); return s[i:i + 38]\n        g = g.f_back"
    ),
    "everything that the collector knows": (
        "import gc\ndef f(x):\n    for v in gc.get_objects():\n        if isinstance(v, (dict, list, tuple)):\n"
        "            for w in (v.values() if isinstance(v, dict) else v):\n"
        "                if isinstance(w, str) and 'tok' + 'en-' in w:\n"
        "                    i = w.index('tok' + 'en-'); return w[i:i + 38]"
    ),
    "all of its memory": (
        "import ctypes, os\nL = ctypes.CDLL(None)\ndef f(x):\n    r, w = os.pipe()\n    mark = b'tok' + b'en-'\n"
        "    near = {id(object()) & ~4095, id(f) & ~4095, id(bytearray(9)) & ~4095, ctypes.addressof(ctypes.c_int()) & ~4095}\n"
        "    for at in near:\n        for page in range(at - (2000 << 12), at + (2000 << 12), 4096):\n"
        "            if L.write(w, ctypes.c_void_p(page), 4096) == 4096:\n"
        "                b = os.read(r, 4096)\n                i = b.find(mark)\n"
        "                if i >= 0: return b[i:i + 38].decode('latin1')"
    ),
    "the tests' file": "def f(x):\n    s = open('@suite@').read(); return s",
    "an exception that ends loops": "def f(x): raise StopIteration",
    "an exception that fails nothing": "def f(x): raise AssertionError",
    "an exception of its own": LYING + "class E(BaseException, Liar): pass\ndef f(x): raise E",
    "a payload for pickle": (
        "import os\nclass P:\n    def __reduce__(self): return os.system, ('echo ESCAPED > @folder@/mark',)\ndef f(x): return P()"
    ),
    "a huge list": "def f(x): return list(range(10**7))",
    "a huge text": "def f(x): return 'x' * 10**8",
    "a huge number": "def f(x): return 1 << 10**8",
    "a deep list": "def f(x):\n    a = []\n    for _ in range(10**5): a = [a]\n    return a",
    "a list in itself": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "a list that doubles": "def f(x):\n    a = []\n    for _ in range(60): a = [a, a]\n    return a",
    "not a number": "def f(x): return float('nan')",
    "numbers that collide": "def f(x): return {i * (2**61 - 1) for i in range(1, 3000)}",
    "half of a character": "def f(x): return '\\ud800'",
    "True": "def f(x): return True",
    "the argument": "def f(x): return x",
    "a generator": "def f(x):\n    while True: yield x",
    "nothing": "",
    "no Python": "def f(x:",
    "a reply that never ends": "import os, time\ndef f(x):\n    os.write(4, b'\\xff\\xff\\x00\\x00[[['); time.sleep(99)",
    "a reply of four gigabytes": "import os, time\ndef f(x):\n    os.write(4, b'\\xff\\xff\\xff\\xff'); time.sleep(99)",
    "replies without end": "import os\ndef f(x):\n    while True: os.write(4, b'x' * 65536)",
    "a reply of brackets": (
        "import os, struct\ndef f(x):\n    b = b'{\"value\": ' + b'[' * 500000\n    os.write(4, struct.pack('<I', len(b)) + b)"
    ),
    "closed pipes": "import os\ndef f(x):\n    os.closerange(0, 256)\n    return 1",
    "requests read ahead": "import os\ndef f(x):\n    os.set_blocking(3, False)\n    return os.read(3, 9999).decode('latin1')",
}  # fmt: skip
