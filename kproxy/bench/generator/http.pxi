# Plain HTTP/1.1 at the same doors, for clients that are not ours (wrk): GET /N is answered with N
# bytes in all, head and body, on a connection that is kept until the client asks for its close. A
# connection that begins with a G speaks it, as no header of ours does.

cdef enum:
    HTTP_OPENS = 71  # "G"
    HTTP_HEAD = 46
    HTTP_MOST = 1 << 30
    #: The line is another one.
    OTHER_LINE = 255

cdef enum:
    #: Where in a request: "GET /", the digits after it, the rest of its first line, other lines.
    HTTP_START
    HTTP_NUMBER
    HTTP_REST
    HTTP_LINE

cdef extern from *:
    """
    #include <stdio.h>
    static const char kp_http_start[] = "GET /";
    static const char kp_http_close[] = "connection: close\\r";

    /* The number takes ten places, so that every head is as long as the others. HTTP/1.0 says in
       no more bytes that the connection ends with this; wrk takes it for an error else. */
    static inline void kp_http_head(char *to, unsigned int body, int last) {
        char head[64];
        snprintf(head, sizeof(head), "HTTP/1.%c 200 OK\\r\\nContent-Length:%10u\\r\\n\\r\\n",
                 last ? '0' : '1', body);
        memcpy(to, head, 46);
    }
    """
    const char *HTTP_START_OF "kp_http_start"
    const char *HTTP_CLOSES "kp_http_close"
    void http_head "kp_http_head"(char *to, unsigned int body, int last) noexcept nogil

# What is known of a request so far, which may come byte by byte. `bare`: of its line nothing has
# come but a carriage return.
cdef struct Http:
    uint8_t speaks
    uint8_t at
    uint8_t matched
    uint8_t bare
    uint8_t closes
    uint32_t asked


cdef int http_take(Http *request, uint8_t byte) noexcept nogil:
    """One byte more: 1 when it ends a request, -1 for one that is not served here, else 0."""
    if request.at == HTTP_START:
        if byte != <uint8_t>HTTP_START_OF[request.matched]:
            return -1
        request.matched += 1
        if HTTP_START_OF[request.matched] == 0:
            request.at = HTTP_NUMBER
            request.asked = 0
            request.closes = False
        return 0
    if request.at == HTTP_NUMBER and 48 <= byte <= 57:
        request.asked = min(<uint64_t>HTTP_MOST + 1, 10 * <uint64_t>request.asked + byte - 48)
        return 0 if request.asked <= HTTP_MOST else -1
    if byte == 10:
        if request.at == HTTP_LINE and request.bare:
            request.at = HTTP_START
            request.matched = 0
            return 1
        request.at = HTTP_LINE
        request.matched = 0
        request.bare = True
    elif request.at == HTTP_LINE:
        http_line(request, byte)
    else:
        request.at = HTTP_REST
    return 0


cdef inline void http_line(Http *request, uint8_t byte) noexcept nogil:
    """A byte of a field: whether the client asks for the close."""
    if byte != 13:
        request.bare = False
    if request.matched == OTHER_LINE:
        return
    # An upper-case letter and its lower case differ in this bit.
    if (byte | 32 if 65 <= byte <= 90 else byte) != <uint8_t>HTTP_CLOSES[request.matched]:
        request.matched = OTHER_LINE
        return
    request.matched += 1
    if HTTP_CLOSES[request.matched] == 0:
        request.closes = True
        request.matched = OTHER_LINE
