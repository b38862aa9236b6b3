package fsnode

import "unsafe"

// decode copies a T from the beginning of b. What an older kernel leaves out
// at the end is zero.
func decode[T any](b []byte) T {
	var v T
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v)), b)
	return v
}

// bytesOf is the memory of v.
func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

func sizeOf[T any]() int {
	var v T
	return int(unsafe.Sizeof(v))
}

func tableSize() int { return sizeOf[tableHead]() + tableRecords*sizeOf[record]() }

func tableViews(mem []byte) (*tableHead, []record) {
	h := sizeOf[tableHead]()
	return (*tableHead)(unsafe.Pointer(&mem[0])), unsafe.Slice((*record)(unsafe.Pointer(&mem[h])), tableRecords)
}
