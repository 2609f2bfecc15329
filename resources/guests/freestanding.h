/*
 * What a guest in C has without a library: types, its command line's options, a barrier.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

/* The number behind `name` on the command line; letters count as themselves. */
static inline u64 option(const char *line, const char *name)
{
    for (; *line; line++) {
        const char *at = line, *want = name;
        while (*want && *at == *want)
            at++, want++;
        if (*want)
            continue;
        u64 value = 0;
        if (*at >= 'a')
            return *at;
        for (; *at >= '0' && *at <= '9'; at++)
            value = value * 10 + (*at - '0');
        return value;
    }
    return 0;
}

/* What was written is there before what follows is read. */
static inline void barrier(void)
{
    asm volatile("lock orl $0, (%%rsp)" : : : "memory");
}
