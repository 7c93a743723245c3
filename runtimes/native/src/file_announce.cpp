// File::announce: the hint about the next reads.
#include <fcntl.h>

#include "file.h"

namespace molkv {

void File::announce(std::uint64_t offset, std::size_t size) const {
    // This is only a hint, so a failure has no effect.
#if defined(__APPLE__)
    radvisory range{};
    range.ra_offset = static_cast<off_t>(offset_ + offset);
    range.ra_count = static_cast<int>(size);
    static_cast<void>(::fcntl(descriptor_, F_RDADVISE, &range));
#else
    static_cast<void>(::posix_fadvise(descriptor_, static_cast<off_t>(offset_ + offset), static_cast<off_t>(size),
                                      POSIX_FADV_WILLNEED));
#endif
}

}  // namespace molkv
