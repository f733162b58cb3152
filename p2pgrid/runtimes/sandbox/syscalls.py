"""Numbers of the system calls that a cage speaks of: ``name:x86-64:aarch64``, a dash where a machine has no such call.

Only what some cage allows, or refuses in a way of its own, stands here. What is missing is refused.
"""

from __future__ import annotations

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""How a filter recognises the machine: a process can enter the kernel by the calls of another one, which have other numbers."""
NEWEST_KNOWN = 450
"""Calls above this number are younger than the table: they are told to be missing, so that libraries fall back."""

_TABLE = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70 preadv2:327:286 pwritev2:328:287
open:2:- creat:85:- openat:257:56 close:3:57 close_range:436:436 stat:4:- fstat:5:80 lstat:6:- newfstatat:262:79 statx:332:291 lseek:8:62
access:21:- faccessat:269:48 faccessat2:439:439 readlink:89:- readlinkat:267:78 getdents:78:- getdents64:217:61 getcwd:79:17 chdir:80:49
fchdir:81:50 mkdir:83:- mkdirat:258:34 rmdir:84:- unlink:87:- unlinkat:263:35 rename:82:- renameat:264:38 renameat2:316:276 symlink:88:-
symlinkat:266:36 truncate:76:45 ftruncate:77:46 fallocate:285:47 fsync:74:82 fdatasync:75:83 flock:73:32 fadvise64:221:223
sendfile:40:71 copy_file_range:326:285 statfs:137:43 fstatfs:138:44 umask:95:166 dup:32:23 dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59
poll:7:- ppoll:271:73 select:23:- pselect6:270:72 epoll_create:213:- epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:-
epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284:- eventfd2:290:19 timerfd_create:283:85 timerfd_settime:286:86
timerfd_gettime:287:87 fcntl:72:25 ioctl:16:29 link:86:- linkat:265:37 mknod:133:- mknodat:259:33 splice:275:76 tee:276:77 chmod:90:-
fchmod:91:52 fchmodat:268:53 utime:132:- utimes:235:- utimensat:280:88 futimesat:261:- mmap:9:222 munmap:11:215 mprotect:10:226
mremap:25:216 madvise:28:233 brk:12:214 mincore:27:232 msync:26:227 membarrier:324:283 clock_gettime:228:113 clock_getres:229:114
clock_nanosleep:230:115 nanosleep:35:101 gettimeofday:96:169 time:201:- times:100:153 getrusage:98:165 alarm:37:- setitimer:38:103
getitimer:36:102 timer_create:222:107 timer_settime:223:110 timer_gettime:224:108 timer_getoverrun:225:109 timer_delete:226:111
getpid:39:172 gettid:186:178 getppid:110:173 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148
getresgid:120:150 getgroups:115:158 getpgrp:111:- getpgid:121:155 getsid:124:156 setpgid:109:154 setsid:112:157 sched_yield:24:124
sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120 sched_get_priority_max:146:125
sched_get_priority_min:147:126 getpriority:140:141 setpriority:141:140 getrandom:318:278 uname:63:160 sysinfo:99:179 getcpu:309:168
capget:125:90 exit:60:93 exit_group:231:94 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136
rt_sigsuspend:130:133 rt_sigtimedwait:128:137 sigaltstack:131:132 restart_syscall:219:128 pause:34:- clone:56:220 clone3:435:435
fork:57:- vfork:58:- execve:59:221 wait4:61:260 waitid:247:95 set_tid_address:218:96 set_robust_list:273:99 futex:202:98
futex_waitv:449:449 rseq:334:293 arch_prctl:158:- getrlimit:97:163 prlimit64:302:261 prctl:157:167 kill:62:129 tkill:200:130
tgkill:234:131 pidfd_open:434:434 socket:41:198 socketpair:53:199 sendto:44:206 recvfrom:45:207 sendmsg:46:211 recvmsg:47:212
recvmmsg:299:243 sendmmsg:307:269 shutdown:48:210 getsockname:51:204 getpeername:52:205 getsockopt:55:209 getxattr:191:8 lgetxattr:192:9
fgetxattr:193:10 listxattr:194:11 llistxattr:195:12 flistxattr:196:13 memfd_create:319:279 openat2:437:437 io_uring_setup:425:425
io_uring_enter:426:426 io_uring_register:427:427
"""


def numbers(machine: str) -> dict[str, int]:
    """Number by name for a machine as ``os.uname`` calls it. Raises KeyError when there is no table for it."""
    column = {"x86_64": 1, "aarch64": 2}[machine]
    rows = (row.split(":") for row in _TABLE.split())
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}
