"""WebAssembly modules that attack: one of functions, and some that must not even load. In text form, assembled when they are used."""

from __future__ import annotations

FUNCTIONS = """
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_filestat_get" (func $path_filestat_get (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_pread" (func $fd_pread (param i32 i32 i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sock_accept" (func $sock_accept (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sock_send" (func $sock_send (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock_time_get (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (table 1 funcref)
  (type $nothing (func))
  (global $next (mut i32) (i32.const 131072))

  (func (export "alloc") (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $next))
    (global.set $next (i32.add (global.get $next) (local.get $size)))
    (local.get $at))

  ;; The answer: eight bytes at 8 of memory, as msgpack bin.
  (func $answer (result i64)
    (i32.store8 (i32.const 6) (i32.const 0xc4))
    (i32.store8 (i32.const 7) (i32.const 8))
    (i64.or (i64.shl (i64.const 6) (i64.const 32)) (i64.const 10)))
  (func $say (param $value i64) (result i64)
    (i64.store (i32.const 8) (local.get $value))
    (call $answer))

  ;; The input is [attack, path]: its number is the second byte, the path has a header of two bytes.
  (func $path_size (param $input i32) (result i32) (i32.load8_u (i32.add (local.get $input) (i32.const 3))))
  (func $open (param $input i32) (param $how i32) (result i64)
    (local $folder i32)
    (local.set $folder (i32.const 3))
    (loop $try
      (if (i32.eqz (call $path_open (local.get $folder) (i32.const 1)
            (i32.add (local.get $input) (i32.const 4)) (call $path_size (local.get $input))
            (local.get $how) (i64.const 0x66) (i64.const 0) (i32.const 0) (i32.const 64)))
        (then (return (call $say (i64.const 1)))))
      (local.set $folder (i32.add (local.get $folder) (i32.const 1)))
      (br_if $try (i32.lt_u (local.get $folder) (i32.const 16))))
    (call $say (i64.const 0)))
  (func $find (param $input i32) (result i64)
    (call $say (i64.extend_i32_u (i32.eqz (call $path_filestat_get (i32.const 3) (i32.const 1)
      (i32.add (local.get $input) (i32.const 4)) (call $path_size (local.get $input)) (i32.const 512))))))
  (func $read_open_files (result i64)
    (local $number i32)
    (i32.store (i32.const 64) (i32.const 1024))
    (i32.store (i32.const 68) (i32.const 4096))
    (local.set $number (i32.const 3))
    (loop $try
      (if (i32.eqz (call $fd_pread (local.get $number) (i32.const 64) (i32.const 1) (i64.const 0) (i32.const 72)))
        (then (return (call $say (i64.const 1)))))
      (local.set $number (i32.add (local.get $number) (i32.const 1)))
      (br_if $try (i32.lt_u (local.get $number) (i32.const 256))))
    (call $say (i64.const 0)))
  (func $sockets (result i64)
    (local $number i32)
    (loop $try
      (if (i32.or (i32.eqz (call $sock_accept (local.get $number) (i32.const 0) (i32.const 64)))
                  (i32.eqz (call $sock_send (local.get $number) (i32.const 64) (i32.const 0) (i32.const 0) (i32.const 72))))
        (then (return (call $say (i64.const 1)))))
      (local.set $number (i32.add (local.get $number) (i32.const 1)))
      (br_if $try (i32.lt_u (local.get $number) (i32.const 256))))
    (call $say (i64.const 0)))
  (func $spin (result i64) (loop $again (br $again)) (call $say (i64.const 1)))
  (func $grow (result i64)
    (block $full
      (loop $more
        (br_if $full (i32.eq (memory.grow (i32.const 64)) (i32.const -1)))
        (br_if $more (i32.lt_u (memory.size) (i32.const 60000)))))
    (call $say (i64.extend_i32_u (memory.size))))
  (func $recurse (param $depth i64) (result i64)
    (i64.add (call $recurse (i64.add (local.get $depth) (i64.const 1))) (local.get $depth)))
  (func $clock (result i64)
    (drop (call $clock_time_get (i32.const 0) (i64.const 1) (i32.const 8)))
    (call $answer))
  (func $chance (result i64)
    (drop (call $random_get (i32.const 8) (i32.const 8)))
    (call $answer))
  (func $environment (result i64)
    (if (call $environ_sizes_get (i32.const 64) (i32.const 68)) (then (return (call $say (i64.const 0)))))
    (call $say (i64.extend_i32_u (i32.load (i32.const 64)))))
  (func $sleep (result i64)
    (i32.store8 (i32.const 72) (i32.const 0))
    (i32.store (i32.const 80) (i32.const 1))
    (i64.store (i32.const 88) (i64.const 3600000000000))
    (drop (call $poll_oneoff (i32.const 64) (i32.const 256) (i32.const 1) (i32.const 512)))
    (call $say (i64.const 0)))
  (func $wild_pointers (result i64)
    (i32.store (i32.const 64) (i32.const 0xfffffff0))
    (i32.store (i32.const 68) (i32.const 0xffffffff))
    (drop (call $fd_write (i32.const 1) (i32.const 64) (i32.const 1) (i32.const 0xfffffffe)))
    (drop (call $fd_write (i32.const 1) (i32.const 0xfffffff0) (i32.const 0xffffffff) (i32.const 72)))
    (drop (call $random_get (i32.const 0xfffffff0) (i32.const 0xffffffff)))
    (call $say (i64.const 0)))

  (func (export "work") (param $input i32) (param $size i32) (result i64)
    (block $none (block $lie (block $jump (block $wild (block $beyond (block $sleep (block $environment (block $chance (block $clock
    (block $recurse (block $grow (block $spin (block $sockets (block $files (block $find (block $make (block $open (block $honest
      (br_table $honest $open $make $find $files $sockets $spin $grow $recurse $clock $chance $environment $sleep $beyond $wild $jump $lie
        $none (i32.load8_u (i32.add (local.get $input) (i32.const 1)))))
    (return (call $say (i64.const 42))))
    (return (call $open (local.get $input) (i32.const 0))))
    (return (call $open (local.get $input) (i32.const 1))))
    (return (call $find (local.get $input))))
    (return (call $read_open_files)))
    (return (call $sockets)))
    (return (call $spin)))
    (return (call $grow)))
    (return (call $recurse (i64.const 0))))
    (return (call $clock)))
    (return (call $chance)))
    (return (call $environment)))
    (return (call $sleep)))
    (return (call $say (i64.load (i32.const 0xfffffff0)))))
    (return (call $wild_pointers)))
    (call_indirect (type $nothing) (i32.const 12345))
    (return (call $say (i64.const 1))))
    (return (i64.const 0xfffffff0ffffffff)))
    (unreachable)))
"""

_HONEST = """
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "work") (param i32 i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32)) (i64.extend_i32_u (local.get 1))))
"""

UNLOADABLE = {
    "import-what-is-not-given": f'(module (import "env" "system" (func (param i32) (result i32))) (memory (export "memory") 1) {_HONEST})',
    "import-unknown-call": f'(module (import "wasi_snapshot_preview1" "sock_open" (func)) (memory (export "memory") 1) {_HONEST})',
    "want-four-gigabytes": f'(module (memory (export "memory") 65536) {_HONEST})',
}
"""Modules that must be refused before they do anything, by the name of the attack."""
GARBAGE = b"\0asm\1\0\0\0" + bytes(range(64))
"""No module, though it begins like one."""
