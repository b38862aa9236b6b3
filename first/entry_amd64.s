#include "textflag.h"

// entry is where the kernel starts the program if it was linked with
// -E first.entry: it notes which signals are ignored, which Go's runtime
// forgets, and goes on to the runtime's own entry. The stack is as execve(2)
// left it and must be so again. Each signal is one rt_sigaction(2) that changes
// nothing; SIG_IGN is 1.
TEXT ·entry(SB), NOSPLIT|NOFRAME, $0
	MOVQ	SP, R12
	SUBQ	$64, SP
	ANDQ	$~15, SP
	MOVQ	$1, R13
	XORQ	R14, R14
loop:
	MOVQ	$13, AX
	MOVQ	R13, DI
	XORQ	SI, SI
	MOVQ	SP, DX
	MOVQ	$8, R10
	SYSCALL
	CMPQ	AX, $0
	JNE	next
	CMPQ	0(SP), $1
	JNE	next
	MOVQ	R13, CX
	DECQ	CX
	MOVQ	$1, R15
	SHLQ	CX, R15
	ORQ	R15, R14
next:
	INCQ	R13
	CMPQ	R13, $65
	JL	loop
	MOVQ	R14, ·ignored(SB)
	MOVQ	R12, SP
	JMP	_rt0_amd64_linux(SB)
