#include "textflag.h"

// The stub. It is copied out of the binary into an ELF image of its own (see
// elf.go) and runs there, so it uses no symbol, no stack and no Go runtime.
// Its data page lies at dataBase; the offsets are those of layout.go.
//
//	R15 data page   R14 reason of the next PRIV   BX entry   R12 entries left
//	R13 flags of the entry. system calls clobber AX, CX and R11 only.

#define PRIV      $0x756e75
#define DATABASE  $0x200000
#define ran       0x00
#define mode      0x08
#define lastpid   0x10
#define threshold 0x18
#define baselen   0x20
#define basestr   0x28
#define basenum   0x38
#define siginfo   0x40
#define tick      0xc0
#define full      0xd0
#define digits    0xe0
#define count     0x108
#define done      0x110
#define entries   0x140

TEXT ·stub(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ DATABASE, R15
	MOVQ $-1, AX
	MOVQ AX, full(R15)
	MOVQ $0, tick(R15)
	MOVQ $200000000, tick+8(R15)

	// rt_sigprocmask(SIG_SETMASK, full, NULL, 8)
	MOVL $14, AX
	MOVL $2, DI
	LEAQ full(R15), SI
	XORL DX, DX
	MOVL $8, R10
	SYSCALL
	MOVL $1, R14

call:
	MOVL PRIV, AX
	MOVQ R14, DI
	MOVQ R15, SI
	MOVQ ran(R15), DX
	SYSCALL
	CMPQ AX, $1
	JEQ  run
	TESTQ AX, AX
	JNS  wait

	// nobody listens (the world is ending): nanosleep, then try again
	MOVL $35, AX
	LEAQ tick(R15), DI
	XORL SI, SI
	SYSCALL
	JMP  call

wait:
	// rt_sigtimedwait(full, siginfo, mode ? tick : NULL, 8)
	MOVL $128, AX
	LEAQ full(R15), DI
	LEAQ siginfo(R15), SI
	XORL DX, DX
	MOVL $8, R10
	CMPQ mode(R15), $0
	JEQ  forever
	LEAQ tick(R15), DX
forever:
	SYSCALL
	CMPQ mode(R15), $0
	JNE  init
	TESTQ AX, AX
	JLE  wait
	MOVL $2, R14
	JMP  call

init:
	// pid 1: only the daemon's ring (64) makes it speak
	CMPQ AX, $64
	JNE  cursor
	MOVL $2, R14
	JMP  call

cursor:
	// pread64(lastpid, digits, 16, 0)
	MOVL $17, AX
	MOVQ lastpid(R15), DI
	LEAQ digits(R15), SI
	MOVL $16, DX
	XORL R10, R10
	SYSCALL
	TESTQ AX, AX
	JLE  wait
	LEAQ digits(R15), SI
	XORL R8, R8
digit:
	MOVBLZX (SI), CX
	SUBL $48, CX
	CMPL CX, $9
	JHI  parsed
	IMULQ $10, R8
	ADDQ CX, R8
	INCQ SI
	DECQ AX
	JNZ  digit
parsed:
	CMPQ R8, threshold(R15)
	JCC  rewind
	CMPQ R8, basenum(R15)
	JCC  wait
rewind:
	// pwrite64(lastpid, basestr, baselen, 0)
	MOVL $18, AX
	MOVQ lastpid(R15), DI
	LEAQ basestr(R15), SI
	MOVQ baselen(R15), DX
	XORL R10, R10
	SYSCALL
	JMP  wait

run:
	LEAQ entries(R15), BX
	MOVQ count(R15), R12
	MOVQ $0, done(R15)
entry:
	TESTQ R12, R12
	JEQ  finished
	MOVQ 64(BX), R13
	MOVQ 0(BX), AX
	MOVQ 8(BX), DI
	MOVQ 16(BX), SI
	MOVQ 24(BX), DX
	MOVQ 32(BX), R10
	MOVQ 40(BX), R8
	MOVQ 48(BX), R9
	TESTQ $2, R13
	JEQ  noref
	MOVQ 72(BX), CX
	IMULQ $80, CX
	ADDQ R15, CX
	MOVQ entries+56(CX), DI
noref:
	SYSCALL
	MOVQ AX, 56(BX)
	TESTQ $4, R13
	JEQ  parent
	TESTQ AX, AX
	JEQ  child
parent:
	CMPQ AX, $-4095
	JCC  failed
	TESTQ $8, R13
	JNE  finished
	JMP  next
failed:
	TESTQ $1, R13
	JNE  finished
next:
	INCQ done(R15)
	ADDQ $80, BX
	DECQ R12
	JMP  entry
finished:
	INCQ ran(R15)
	MOVL $3, R14
	JMP  call

child:
	MOVQ $0, mode(R15)
	MOVQ $0, ran(R15)
	MOVL $1, R14
	JMP  call

	// trailer: elf.go finds the end of the code by it
	BYTE $0x75; BYTE $0x6e; BYTE $0x75; BYTE $0x6d
	BYTE $0x2d; BYTE $0x65; BYTE $0x6e; BYTE $0x64
	RET

// func stubAddr() unsafe.Pointer
TEXT ·stubAddr(SB), NOSPLIT, $0-8
	LEAQ ·stub(SB), AX
	MOVQ AX, ret+0(FP)
	RET
