;; The two loops that look at every octet of a message. octets-code.ts is this file, assembled; test/unit/octets.test.ts
;; sees to it, and writes it anew when vitest is called with -u.
;;
;; Memory: 0 the four lanes of the digest, 8 octets each; 64 the octets looked at, with room before and behind them.
(module
  (memory (export "memory") 2)

  ;; At or behind $at the first octet that is not ordinary text, seen from the one before it: what follows CR and isn't
  ;; LF, an LF that follows none, a dot that follows LF, a NUL; $end or more when there is none. Takes 16 at a time,
  ;; beyond $end too.
  (func (export "nextSpecial") (param $at i32) (param $end i32) (result i32)
    (local $octets v128) (local $before v128) (local $special v128)
    (loop $again
      (if (i32.ge_u (local.get $at) (local.get $end)) (then (return (local.get $at))))
      (local.set $octets (v128.load (local.get $at)))
      (local.set $before (v128.load (i32.sub (local.get $at) (i32.const 1))))
      (local.set $special
        (v128.or
          (v128.xor
            (i8x16.eq (local.get $before) (i8x16.splat (i32.const 0x0d)))
            (i8x16.eq (local.get $octets) (i8x16.splat (i32.const 0x0a))))
          (v128.or
            (v128.and
              (i8x16.eq (local.get $before) (i8x16.splat (i32.const 0x0a)))
              (i8x16.eq (local.get $octets) (i8x16.splat (i32.const 0x2e))))
            (i8x16.eq (local.get $octets) (i8x16.splat (i32.const 0x00))))))
      (if (v128.any_true (local.get $special))
        (then (return (i32.add (local.get $at) (i32.ctz (i8x16.bitmask (local.get $special)))))))
      (local.set $at (i32.add (local.get $at) (i32.const 16)))
      (br $again))
    (unreachable))

  ;; XXH64's main loop (xxHash specification, 3.2): whole stripes of 32 octets go into the lanes. Gives where it stopped.
  (func (export "stripes") (param $at i32) (param $end i32) (result i32)
    (local $a i64) (local $b i64) (local $c i64) (local $d i64)
    (local.set $a (i64.load (i32.const 0)))
    (local.set $b (i64.load (i32.const 8)))
    (local.set $c (i64.load (i32.const 16)))
    (local.set $d (i64.load (i32.const 24)))
    (block $done
      (loop $again
        (br_if $done (i32.gt_u (i32.add (local.get $at) (i32.const 32)) (local.get $end)))
        ;; Written out four times: a function called for each takes five times as long.
        (local.set $a
          (i64.mul (i64.rotl (i64.add (local.get $a)
            (i64.mul (i64.load (local.get $at)) (i64.const 0xC2B2AE3D27D4EB4F)))
            (i64.const 31)) (i64.const 0x9E3779B185EBCA87)))
        (local.set $b
          (i64.mul (i64.rotl (i64.add (local.get $b)
            (i64.mul (i64.load offset=8 (local.get $at)) (i64.const 0xC2B2AE3D27D4EB4F)))
            (i64.const 31)) (i64.const 0x9E3779B185EBCA87)))
        (local.set $c
          (i64.mul (i64.rotl (i64.add (local.get $c)
            (i64.mul (i64.load offset=16 (local.get $at)) (i64.const 0xC2B2AE3D27D4EB4F)))
            (i64.const 31)) (i64.const 0x9E3779B185EBCA87)))
        (local.set $d
          (i64.mul (i64.rotl (i64.add (local.get $d)
            (i64.mul (i64.load offset=24 (local.get $at)) (i64.const 0xC2B2AE3D27D4EB4F)))
            (i64.const 31)) (i64.const 0x9E3779B185EBCA87)))
        (local.set $at (i32.add (local.get $at) (i32.const 32)))
        (br $again)))
    (i64.store (i32.const 0) (local.get $a))
    (i64.store (i32.const 8) (local.get $b))
    (i64.store (i32.const 16) (local.get $c))
    (i64.store (i32.const 24) (local.get $d))
    (local.get $at)))
