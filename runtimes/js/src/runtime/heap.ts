/** A binary heap in an array of numbers: the largest number is first. It sorts only the numbers that are taken. */

type Numbers = Float32Array | Float64Array;

/** Make a heap of the first `size` numbers. */
export function makeHeap(heap: Numbers, size: number): void {
    for (let index = (size >> 1) - 1; index >= 0; index--) siftDown(heap, index, size);
}

/** Remove the largest number of a heap of `size` numbers, and return it. */
export function popLargest(heap: Numbers, size: number): number {
    const largest = heap[0]!;
    heap[0] = heap[size - 1]!;
    siftDown(heap, 0, size - 1);
    return largest;
}

/** Return the `count`-th largest of the first `size` numbers, and reorder them. `count` is from 1 to `size`. */
export function nthLargest(numbers: Numbers, size: number, count: number): number {
    makeHeap(numbers, size);
    for (let taken = 1; taken < count; taken++) popLargest(numbers, size - taken + 1);
    return numbers[0]!;
}

function siftDown(heap: Numbers, start: number, size: number): void {
    const moved = heap[start]!;
    let index = start;
    for (;;) {
        let child = 2 * index + 1;
        if (child >= size) break;
        if (child + 1 < size && heap[child + 1]! > heap[child]!) child++;
        if (heap[child]! <= moved) break;
        heap[index] = heap[child]!;
        index = child;
    }
    heap[index] = moved;
}
